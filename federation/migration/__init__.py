"""The move of a study's server from one provider to another: `fedthorax server export` and `server import`.

What travels is what the study has learnt and who takes part in it: runs with their checkpoints, the roster, the
authority, MLflow's experiments. What belongs to a machine is made anew: the server's own certificate, Flower's memory
(state.db), secrets of its processes, logs. The sites keep their keys, certificates and ledgers.

leave     the old server writes the archive, is marked as moved, and starts no more: two with one roster would part ways
settle    the new server is made from it, whole or not at all
archive, sealed, experiments, restore: the file, its passphrase, MLflow out, MLflow in
"""
