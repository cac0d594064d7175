"""Packed-prefill inference: many prompts, no padding, shared prefixes."""
