"""What a regulator, an auditor and a home may ask about: explain, challenge, export."""
