"""The `gridledger` command. It holds no logic: every verb is a call into another room."""
