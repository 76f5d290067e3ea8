"""SFT and DPO over TRL, with what they must not do in silence checked before the first step."""
