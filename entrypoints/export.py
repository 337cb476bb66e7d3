"""python -m entrypoints.export KEY=VALUE ... (see conf/export.yaml)"""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("export")
