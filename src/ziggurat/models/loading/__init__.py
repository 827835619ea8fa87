"""Trained models from files: found, checked, placed on devices, adapted, and proved right."""
