"""Which names say that what they name is a secret: of variables, keys and parameters."""

import re
from functools import cache
from itertools import pairwise


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


STRONG = re.compile(
    r"(?:.*(?:password|passwd|passphrase|passcode|passkey|secret|credential|apikey|accesskey"
    r"|secretkey|authtoken|accesstoken)|sshpass|pwd|authorization|cookie|jwt)s?|sas"
)
"""A word of a name that is enough: also PGPASSWORD, clientsecret."""
PAIRS = frozenset(
    {
        *(("access", "key"), ("account", "key"), ("private", "key"), ("auth", "key")),
        *(("signing", "key"), ("encryption", "key"), ("shared", "key"), ("storage", "key")),
        *(("service", "key"), ("api", "key"), ("sas", "token"), ("connection", "string")),
    }
)
SERVICES = _words_of(
    """
    openai azure google gemini vertex mistral cohere groq xai grok deepseek together
    fireworks openrouter perplexity replicate voyage jina nvidia ngc nim hf huggingface hub
    kaggle wandb comet neptune langchain langsmith langfuse aws gcp s3 minio github gitlab
    gh git bitbucket npm pypi docker slack discord stripe twilio sendgrid datadog sentry
    pinecone qdrant weaviate databricks snowflake serpapi tavily elevenlabs redis vault
    mlflow api auth access refresh bearer bot deploy personal admin master license fernet
    aes hmac webhook ssh
    """
)
"""Whose "key" or "tokens" are secrets, however the name is written."""
OF_STRUCTURE = _words_of(
    """
    cache primary foreign sort partition group join row column dict hash map index lookup
    public config option setting param data object item field label input output image text
    prompt message answer question score metric run model tag sweep state feature target
    first last next any each unique composite shard routing idempotency registry name
    default hot ctrl shift meta return
    """
)
"""What stands before "KEY" in a variable's name where that is no secret."""
NO_LOGIN = _words_of(
    """
    first second third last next one two single each per all any forward backward by no max
    min num must can will use enable with without require requires required tracking server
    skip
    """
)
"""What stands before "pass" or "auth" where that is a step, a switch or a plug-in."""
TRAILING = _words_of(
    """
    value values plain raw prod production staging dev backup
    """
)
"""A name goes on with these, and is of the same thing."""
ABOUT = _words_of(
    """
    path file dir folder id url uri name type provider class mode count length len limit
    size sock timeout ttl expiration env version required enabled location endpoint helper
    store index function plugin algorithm issuer audience scope scopes header names files
    paths ids
    """
)
"""A name that ends so tells of a secret, and holds none: HF_TOKEN_PATH, secret_name."""
OF_TEXTS = _words_of(
    """
    pad eos bos unk sep mask cls stop special image forced max min new per first last next
    end start one any each to a the by of decoder prompt added think bad no
    """
)
"""What stands before "token" where it is a piece of a text."""


@cache
def names_secret(name: str) -> bool:
    """``hf_token``, ``fs.s3a.secret.key``, ``PGPASSWORD``; not ``max_tokens`` or ``cache_key``."""
    words = _words(name)
    if not words or words in (["pwd"], ["oldpwd"]) or words[-1] in ABOUT:
        return False
    one = [word.removesuffix("s") if word == "keys" else word for word in words]
    if any(map(STRONG.fullmatch, words)) or PAIRS & set(pairwise(one)):
        return True
    before = words[-2] if len(words) > 1 else ""
    match words[-1]:
        case "token" | "pat":
            return before not in OF_TEXTS
        case "tokens":
            return before in SERVICES
        case "key" | "keys":
            own = name.rpartition(".")[2]
            of_variable = own.isupper() and "_" in own and before not in OF_STRUCTURE
            return before in SERVICES or of_variable
        case "pass" | "auth":
            return before != "" and before not in NO_LOGIN
    return False


def _words(name: str) -> list[str]:
    """Without what tells several of one thing apart: ``hf_token_1``, ``password2``."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    parts = re.split(r"[^A-Za-z0-9]+|_", split.lower())
    words = [word for part in parts if (word := part.rstrip("0123456789"))]
    while words and words[-1] in TRAILING:
        words.pop()
    return words
