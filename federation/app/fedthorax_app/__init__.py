"""The shim that travels to the sites; the code is what each site has installed."""
