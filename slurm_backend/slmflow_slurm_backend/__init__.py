"""``mlflow run . --backend slurm``: a project run as a Slurm job, through submitit."""
