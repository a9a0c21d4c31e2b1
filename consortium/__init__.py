"""The consortium ledger: ordering nodes, peers, contracts and the tools to run them."""
