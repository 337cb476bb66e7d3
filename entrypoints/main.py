"""python -m entrypoints.main KEY=VALUE ... (see conf/main.yaml)"""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("main")
