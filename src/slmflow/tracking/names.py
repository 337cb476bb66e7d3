"""Names of tags and artifacts by which one part of the project finds what another recorded."""

ENTRY_POINT = "slmflow.entry_point"  # on every run of one
MADE_BY = "slmflow.made_by"  # on a run without provenance/: the run whose provenance is its own
PARENT = "mlflow.parentRunId"
POINT = "slmflow.sweep.point"  # on the run of a sweep's point: its number
OVERRIDES = "slmflow.sweep.overrides"  # on the same: what varies, ``KEY=VALUE`` in a list of JSON
COMMAND = "slmflow.sweep.command"  # on a sweep's run: what was typed
RESUMES = "slmflow.sweep.resumes"  # on the run of a session that went on with a sweep: the sweep
LOCKED = "locked.json"  # artifact of a run of lock: what the models were resolved to
PLAN = "sweep_plan.json"  # artifact of a sweep's run
UPLOADED_BY = "slmflow.weights.run"  # on weights that many models share: the run that uploads them
