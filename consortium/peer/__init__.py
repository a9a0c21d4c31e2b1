"""The peer: executes proposals and endorses them, follows the orderers, commits, and tells.

`channel.py` holds one channel's ledger and keeps it up with the orderers; `endorser.py` answers
proposals; `deliver.py` streams blocks to whoever may read them. Nothing here knows what energy is.
"""
