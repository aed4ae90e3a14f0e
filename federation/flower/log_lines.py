"""Lines of a SuperNode's log by which the node's state is known, as regular expressions.

Of supernode/start_client_internal.py and supercore/retry/http_retry.py of Flower 1.42.
"""

ONLINE = r"INFO .*SuperNode ID: \d+$"
CONNECTION_FAILED = r"WARNING .*Connection attempt failed, retrying"
CONNECTED_AGAIN = r"INFO .*Connection successful after ([\d.]+) seconds"
RECEIVING = r"INFO .*Receiving: ([a-z.]+) message"
SENT = r"INFO .*Sent successfully$"
NOT_RUNNING = r"INFO .*is not in `RUNNING` status"
NOT_PASSED = r"ERROR .*Failed to (receive|send) message"
RAISED = r"ERROR .*raised an exception$"
ENDED = r"INFO .*SuperNode terminated gracefully"
# In the output of a SuperNode that starts: the id that the server assigned, and why it cannot start.
NODE_ID = r"SuperNode ID: (\d+)"
NOT_CONNECTED = "Connection attempt failed"
NOT_ENROLLED = "[code: 2004]"  # FLEET_NODE_ACTIVATION_FAILED
# The last line of the output if its main loop ended at an error. Ours, in supernode_program.
LOOP_ENDED = "The SuperNode's main loop has ended."
