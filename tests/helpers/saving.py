"""Checkpoint folders, made of a policy."""

from dp.checkpoints import folder as checkpoint


def save_policy(policy, folder, dtype=None, **card):
    """Like `policy.save_pretrained`, with what else a config may say (step, dataset, license), in that dtype."""
    checkpoint.save(folder, policy.model, {"policy": policy.config, **card}, dtype=dtype)
