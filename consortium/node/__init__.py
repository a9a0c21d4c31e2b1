"""Assembly: a utility's nodes from a folder on disk, one by one or a whole network at once.

`network.py` is the folder (who takes part, where they listen, their keys and certificates);
`nodes.py` starts certificate authorities, orderers and peers from it; `contracts.py` defines the
contracts on a new channel.
"""
