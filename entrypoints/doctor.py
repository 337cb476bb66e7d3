"""python -m entrypoints.doctor KEY=VALUE ... (see conf/doctor.yaml)"""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("doctor")
