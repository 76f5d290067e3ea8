"""Companion package of the DPO workbook: preference data, QLoRA DPO, and a three-way comparison."""

__version__ = "0.1.0"
