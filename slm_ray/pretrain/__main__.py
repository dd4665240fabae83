"""``python -m slm_ray.pretrain``."""

from slm_ray.pretrain.command import PRETRAIN

if __name__ == "__main__":
    PRETRAIN.run()
