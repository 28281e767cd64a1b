"""What runs user code: worker pools, agents' turns, capabilities' invocations.

Users never import it.
"""
