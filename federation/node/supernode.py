"""The process in which Flower's SuperNode runs: it asks the gateway for tasks and gives them to the study's code.

python -I -m federation.node.supernode [OPTION...]
"""

from federation.flower.supernode_program import run_supernode

if __name__ == "__main__":
    run_supernode()
