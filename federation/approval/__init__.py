"""Which code may run at a hospital: bundles of apps, what they hold, what was decided about them."""
