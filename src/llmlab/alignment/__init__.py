"""From a pretrained model to one that answers as people prefer: SFT, reward model, PPO, DPO."""
