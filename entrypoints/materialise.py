"""python -m entrypoints.materialise model_uri=models:/NAME/VERSION (see conf/materialise.yaml)"""

from slmflow.cli import run_entry_point

if __name__ == "__main__":
    run_entry_point("materialise")
