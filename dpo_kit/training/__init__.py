"""SFT and DPO with TRL's trainers. Checks before the first step find errors that would otherwise stay silent."""
