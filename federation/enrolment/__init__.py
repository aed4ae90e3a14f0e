"""Enrolment of hospitals in a study: invitations, certificates, and the authority that signs them."""
