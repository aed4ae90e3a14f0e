"""Move a study's server from one provider to another: `fedthorax server export` and `server import`.

The archive contains the state of the study: runs with their checkpoints, the roster, the authority and the experiments
in MLflow. Everything that belongs to one machine is created again: the server's own certificate, Flower's database
(state.db), the secrets of its processes, logs. The sites keep their keys, certificates and ledgers.

export            the old server writes the archive and is marked as moved. It does not start again, because two
                  servers with the same roster would diverge.
import_archive    the new server is created from the archive, completely or not at all
archive, age_file, experiments, mlflow_restore: file format, encryption, MLflow export, MLflow import
"""
