"""The runner and the engines that move units."""

from cryoseg_dist.runtime.ray_token import draw_token

# Ray looks for it when it is imported, and every module here that imports Ray comes after this one.
draw_token()
