"""The runner and the engines that move units."""
