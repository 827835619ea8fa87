"""Reinforcement learning: tasks, rewards, rollouts by the serving engine, the GRPO objective."""
