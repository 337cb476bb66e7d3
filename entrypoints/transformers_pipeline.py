"""python -m entrypoints.transformers_pipeline KEY=VALUE ..."""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("transformers_pipeline")
