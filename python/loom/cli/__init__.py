"""The command line: one file a command. ``main`` declares them and imports none of them."""
