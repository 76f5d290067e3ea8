"""The paper as functions: worlds small enough to enumerate, losses, divergences. It imports only torch and numpy."""
