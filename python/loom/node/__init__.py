"""What hosts an engine for others: its Bridge, its tokens, and the control of it all."""
