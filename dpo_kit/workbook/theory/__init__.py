"""The paper as functions: worlds small enough to enumerate, losses, divergences. Knows only torch and numpy."""
