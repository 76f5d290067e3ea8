"""SFT and DPO over TRL, with checks before the first step of what would otherwise go wrong without a word."""
