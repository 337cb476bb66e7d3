"""A job as a person sees it in the terminal when it is done."""

from slmflow import console
from slmflow.prediction.predict import Summary


def show_job(summary: Summary) -> None:
    before = sum(part.rows for part in summary.parts) - sum(part.rows for part in summary.new)
    answered = summary.rows - summary.failed
    console.heading(f"{answered:,} of {summary.rows:,} rows answered")
    if before:
        console.prose(f"{before:,} of the rows were done before")
    if summary.failed:
        has = "1 row has" if summary.failed == 1 else f"{summary.failed:,} rows have"
        console.prose(f"{has} an error; the first: {summary.first_error}")
    rate = summary.tokens_per_second
    if rate is not None:
        made = sum(part.completion_tokens for part in summary.new)
        console.prose(f"{made:,} tokens in {summary.seconds:.1f} s: {rate:,.1f} tokens/s")
    for own, name in summary.manifest["renamed"].items():
        console.prose(f"the input's column {own} is called {name} there")
    console.note(summary.output)
    read = f"import pandas; print(pandas.read_parquet('{summary.output}'))"
    console.commands("next", [("read them", f'python -c "{read}"')])
