"""Reasons of sign-in with the hospital's accounts (OpenID Connect)."""

from models.refusal import Reason

SIGN_IN_OFF = Reason(
    "E_SIGN_IN_OFF",
    "this clinic has no sign-in with the hospital's accounts",
    "Sign in with a token, or set up [oidc] in clinic.toml.",
)
SIGN_IN_TOKENS_OFF = Reason(
    "E_SIGN_IN_TOKENS_OFF",
    "persons must sign in with the hospital's account here, not with a token",
    "Use the button for the hospital's account. If the provider is down, the token that clinic.toml names as "
    "emergency_admin works.",
)
SIGN_IN_PROVIDER = Reason(
    "E_SIGN_IN_PROVIDER",
    "the hospital's provider of identities gives no usable response",
    "Try again later, or sign in with the emergency administrator's token. logs/service.log of the clinic says what "
    "failed: check issuer, ca_certificate and proxy in [oidc] of clinic.toml.",
)
SIGN_IN_SECRET = Reason(
    "E_SIGN_IN_SECRET",
    "the file of the client's secret or the authority's certificate in [oidc] cannot be used",
    "Name readable files in [oidc] of clinic.toml. Only the service's user may read the secret (mode 600).",
)
SIGN_IN_STATE = Reason(
    "E_SIGN_IN_STATE",
    "this sign-in was not started in this browser, took too long, or was used already",
    "Sign in again from the page.",
)
SIGN_IN_REFUSED = Reason(
    "E_SIGN_IN_REFUSED",
    "the hospital's provider of identities refused the sign-in",
    "Try again. If it happens again, ask the provider's administrator whether the account may use this service.",
)
SIGN_IN_TOKEN = Reason(
    "E_SIGN_IN_TOKEN",
    "the provider's ID token is not valid for this clinic",
    "Sign in again. If it happens again, logs/service.log of the clinic says which check failed.",
)
SIGN_IN_KEY = Reason(
    "E_SIGN_IN_KEY",
    "the provider's ID token is signed with a key that the provider does not publish",
    "Try again in a minute: new keys are then fetched.",
)
SIGN_IN_ROLE = Reason(
    "E_SIGN_IN_ROLE",
    "the hospital's account has no role in this clinic",
    "Ask the provider's administrator for one of the groups that [oidc.roles] of clinic.toml names.",
)
SIGN_IN_NAME = Reason(
    "E_SIGN_IN_NAME",
    "the hospital's account has no usable user name, or another account had this name here before",
    "Check name_claim in [oidc] of clinic.toml. A name is never given to a second account, because the audit records "
    "use it.",
)
SIGN_IN_DISABLED = Reason(
    "E_SIGN_IN_DISABLED",
    "an administrator of this clinic has disabled this account",
    "Ask an administrator of the clinic to enable it.",
)

# --- accounts, on the administrator's page --------------------------------------------------------------

OWN_ACCOUNT = Reason(
    "E_OWN_ACCOUNT",
    "nobody can disable, reset or change the role of their own account",
    "Ask another administrator, or use `fedthorax clinic revoke` on the machine.",
)
EMERGENCY_ADMIN = Reason(
    "E_EMERGENCY_ADMIN",
    "this is the emergency administrator's token, which keeps the clinic usable while the provider is down",
    "Name another token as emergency_admin in [oidc] of clinic.toml first.",
)
PROVIDER_ACCOUNT = Reason(
    "E_PROVIDER_ACCOUNT",
    "role and password of this account come from the hospital's provider of identities",
    "Change the account's groups or password at the provider. Here it can be disabled.",
)
TOKEN_ENDED = Reason(
    "E_TOKEN_ENDED",
    "the token is revoked or expired, or was only for the first sign-in, and does not become valid again",
    "Create a token with another name.",
)
