"""``python -m slm_ray.evaluate``."""

from slm_ray.evaluate.command import EVALUATE

if __name__ == "__main__":
    EVALUATE.run()
