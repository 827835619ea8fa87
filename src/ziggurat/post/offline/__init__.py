"""Objectives over given data: fine-tuning, preference, judged answers, rewards, distillation."""
