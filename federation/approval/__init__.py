"""What may run at a hospital: apps, studies and releases, their review, and the hospital's decisions about them."""
