"""The hospital's provider of identities (OpenID Connect): its settings, its keys, and what its ID tokens prove.

May import `site` and `system`. Begin with `id_token`. `clinic.web.single_sign_on` makes a sign-in of it.
"""
