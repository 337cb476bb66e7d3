"""python -m entrypoints.serve KEY=VALUE ... (see conf/serve.yaml)"""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("serve")
