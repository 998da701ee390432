"""Pytest plugins that make cells slower on purpose: what the gate has to find."""
