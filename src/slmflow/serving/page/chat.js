const KEY = "slmflow.api-key";
const WAIT = 5; // seconds until the server is asked again, where it names no time itself
const REASONS = {
  stop: "finished",
  content_filter: "held back by a content filter",
  stopped: "stopped by you",
};

const byId = (id) => document.getElementById(id);
const log = byId("log");
const question = byId("question");

let model = null; // what the server calls it
let turns = []; // of this conversation: {question, answer, kept}
let running = null; // the AbortController of the answer under way
let nextTry; // timer

class Failure extends Error {
  constructor(message, fields) {
    super(message);
    Object.assign(this, fields); // status, retryAfter
  }
}

// ---- the server

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Failure("The server cannot be reached.", { status: 0 });
  }
  if (!response.ok) {
    const { status } = response;
    const said = messageOf(await response.json().catch(() => ({})));
    const retryAfter = Number(response.headers.get("Retry-After"));
    throw new Failure(said ?? `The server answered with status ${status}.`, { status, retryAfter });
  }
  return response;
}

function messageOf(body) {
  const said = body.error?.message ?? body.error ?? body.detail;
  return said === undefined || typeof said === "string" ? said : JSON.stringify(said);
}

// The data of each event of a stream. A network chunk may end anywhere: within an event, a line
// end or a character.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      // A carriage return at the very end may be half of a line end, so it waits.
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) {
          data.push(line.slice(5).replace(/^ /, ""));
        } else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Failure(`The server sent what is no JSON: ${data}`);
  }
}

// The chunks of one streamed answer; throws where it does not come to its end.
async function* chunks(body) {
  for await (const data of events(body)) {
    if (data === "[DONE]") return;
    const chunk = parse(data);
    if (chunk.error) throw new Failure(messageOf(chunk));
    yield chunk;
  }
  throw new Failure("The connection ended before the answer did.");
}

async function connect() {
  clearTimeout(nextTry);
  try {
    const list = await (await request("v1/models")).json();
    model = list.data[0].id;
    byId("model").textContent = byId("model").title = model;
    document.title = `${model} - slmflow chat`;
    byId("banner").hidden = true;
  } catch (error) {
    warn(error);
  }
}

// Says in the banner what is wrong with the server, and asks it again where time may help.
function warn({ status, message, retryAfter }) {
  const refused = sessionStorage.getItem(KEY) !== null;
  const wait = retryAfter > 0 ? retryAfter : WAIT;
  const notice = {
    0: `The server cannot be reached. Next try in ${wait} s.`,
    401: refused ? "The server refused this API key." : "The server needs an API key.",
    429: `The server is busy and asks to wait ${wait} s.`,
    503: `The server is not ready yet: ${message} Next try in ${wait} s.`,
  }[status];
  byId("banner").hidden = false;
  byId("notice").textContent = notice ?? `The server does not name its model: ${message}`;
  byId("key-form").hidden = status !== 401;
  byId("retry").hidden = status === 401;
  clearTimeout(nextTry);
  if (status === 401) {
    byId("key").focus();
  } else if (notice) {
    nextTry = setTimeout(connect, wait * 1000);
  }
}

// ---- a turn

function parameters() {
  const given = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (byId(name).value !== "") given[name] = Number(byId(name).value);
  }
  const stop = byId("stop").value.split("\n").filter((text) => text !== "");
  if (stop.length) given.stop = stop;
  return given;
}

function messages(text) {
  const system = byId("system").value;
  const said = system.trim() ? [{ role: "system", content: system }] : [];
  for (const turn of turns.filter((turn) => turn.kept)) {
    said.push({ role: "user", content: turn.question });
    said.push({ role: "assistant", content: turn.answer });
  }
  return [...said, { role: "user", content: text }];
}

async function ask(text) {
  const given = parameters();
  const body = {
    ...(model && { model }),
    messages: messages(text),
    ...given,
    stream: true,
    stream_options: { include_usage: true },
  };
  const turn = { question: text, answer: "", kept: false };
  turns.push(turn);
  const view = show(turn);
  const control = new AbortController();
  setRunning(control);
  const facts = { sent: performance.now(), limit: given.max_tokens };
  try {
    const response = await request("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: control.signal,
    });
    for await (const chunk of chunks(response.body)) {
      const choice = chunk.choices?.[0];
      const piece = choice?.delta?.content;
      if (piece) {
        facts.first ??= performance.now();
        turn.answer += piece;
        view.add(piece);
      }
      facts.reason = choice?.finish_reason ?? facts.reason;
      facts.usage = chunk.usage ?? facts.usage;
    }
    turn.kept = true;
    view.end(inWords(facts));
  } catch (error) {
    if (control.signal.aborted) {
      turn.kept = turn.answer !== "";
      view.end(inWords({ ...facts, reason: "stopped" }), turn.kept ? undefined : "Not answered.");
    } else {
      const lost = "The connection was lost before the answer ended.";
      view.end("", error instanceof Failure ? error.message : lost);
      if ([0, 401, 429, 503].includes(error.status)) warn(error);
    }
  }
  if (running === control) setRunning(null);
}

function inWords({ sent, first, reason, usage, limit }) {
  const now = performance.now();
  const facts = [REASONS[reason] ?? reason ?? "ended"];
  const made = usage?.completion_tokens;
  if (reason === "length") {
    facts[0] = made < limit ? "cut at the model's length limit" : "cut at max_tokens";
  }
  if (usage) facts.push(`${usage.prompt_tokens} prompt tokens`, `${made} completion tokens`);
  if (first) facts.push(`first token after ${((first - sent) / 1000).toFixed(2)} s`);
  // What came in one go, as through a proxy that collects it, has no speed.
  if (first && made > 1 && now - first > 10) {
    const rate = ((made - 1) * 1000) / (now - first);
    facts.push(`${rate.toLocaleString("en", { maximumSignificantDigits: 3 })} tokens/s`);
  }
  return facts.join(" · ");
}

// ---- the page

function show(turn) {
  const article = byId("turn").content.cloneNode(true).firstElementChild;
  const answer = article.querySelector(".answer").appendChild(new Text());
  const failure = article.querySelector(".failure");
  article.querySelector(".question").textContent = turn.question;
  article.setAttribute("aria-busy", "true"); // read out when it is whole
  following(() => log.append(article), true);
  failure.querySelector("button").addEventListener("click", () => {
    // What is being typed is not lost either.
    question.value = [turn.question, question.value].filter((text) => text.trim()).join("\n");
    turns = turns.filter((other) => other !== turn);
    article.remove();
    question.focus();
  });
  return {
    add: (piece) => following(() => answer.appendData(piece)),
    end: (facts, problem) =>
      following(() => {
        article.querySelector(".facts").textContent = facts;
        failure.querySelector("p").textContent = problem ?? "";
        failure.hidden = problem === undefined;
        article.setAttribute("aria-busy", "false");
      }),
  };
}

// Scrolls along, unless the reader has scrolled away.
function following(change, always = false) {
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  change();
  if (always || atEnd) log.scrollTop = log.scrollHeight;
}

function setRunning(control) {
  running = control;
  byId("send").hidden = control !== null;
  byId("halt").hidden = control === null;
}

function halt() {
  running?.abort();
  question.focus();
}

function send() {
  const text = question.value;
  if (running || !text.trim()) return;
  if (!byId("fields").checkValidity()) {
    byId("settings").open = true; // the browser can only point at what is visible
    byId("fields").reportValidity();
    return;
  }
  question.value = "";
  question.focus();
  ask(text);
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("fields").addEventListener("submit", (event) => event.preventDefault());
question.addEventListener("keydown", (event) => {
  // Enter also ends the composition of a character, which sends nothing.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
byId("halt").addEventListener("click", halt);
document.addEventListener("keydown", (event) => event.key === "Escape" && running && halt());
byId("new").addEventListener("click", () => {
  halt();
  setRunning(null);
  turns = [];
  log.querySelectorAll("article").forEach((article) => article.remove());
});
byId("retry").addEventListener("click", connect);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value);
  byId("key").value = "";
  question.focus();
  connect();
});
const wide = matchMedia("(min-width: 52rem)");
const fold = () => (byId("settings").open = wide.matches);
wide.addEventListener("change", fold);
fold();
connect();
