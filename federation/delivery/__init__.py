"""Makes and verifies the project's own release: `make release`, and `fedthorax verify-release` at a hospital.

distributions        wheel and sdist, the same bytes at each build
locks                `make lock`: the libraries of each role with their hashes
bundle, install.sh   everything that one role needs, to install it without a network
inventory, licences  the bill of materials of each form, and whether its licences permit the release
images, debian_root  the container image of each role, from its bundle
checksums            SHA256SUMS and its signature
make_release         all of it, in order

Imports no other room of `federation` but `system`. Begin with `make_release`.
"""
