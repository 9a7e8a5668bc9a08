"""The pages at the door."""

from __future__ import annotations

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render, resolve_url
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme, urlencode
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from accounts import signin
from accounts.forms import SignInForm

REFUSED = "Wrong username or password."


@sensitive_post_parameters("password")
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def sign_in(request: HttpRequest) -> HttpResponse:
    """`/`: the sign-in form; those who are signed in go on to their drive, or to a local `next`."""
    given_next = request.POST.get("next") or request.GET.get("next") or ""
    target = given_next if _is_local(given_next) else resolve_url(settings.LOGIN_REDIRECT_URL)
    if request.method != "POST":
        if request.user.is_authenticated:
            return redirect(target)
        return _form_page(request, SignInForm(), given_next)
    form = SignInForm(request.POST)
    if not form.is_valid():
        return _form_page(request, form, given_next, "Enter your username and your password.", 400)
    try:
        signin.sign_in(request, form.cleaned_data["username"], form.cleaned_data["password"])
    except signin.SignInRefused:
        return _form_page(request, form, given_next, REFUSED)
    except signin.Throttled as wait:
        reason = f"Too many failed attempts. Try again in {_duration(wait.retry_after)}."
        response = _form_page(request, form, given_next, reason, 429)
        response["Retry-After"] = str(wait.retry_after)
        return response
    return redirect(target)


@never_cache
@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    signin.sign_out(request)
    return redirect(settings.LOGOUT_REDIRECT_URL)


@never_cache
def staff_sign_in(request: HttpRequest) -> HttpResponse:
    """In place of the admin site's own form, so that there is one door with one throttle."""
    given_next = request.GET.get("next") or ""
    target = given_next if _is_local(given_next) else reverse("admin:index")
    if not request.user.is_authenticated:
        return redirect(f"{reverse('accounts:sign-in')}?{urlencode({'next': target})}")
    if not request.user.is_staff:
        raise PermissionDenied
    return redirect(target)


def _is_local(address: str) -> bool:
    """Whether a browser stays on this site; a header takes no control characters."""
    return (
        address.startswith("/")
        and address.isprintable()
        and url_has_allowed_host_and_scheme(address, allowed_hosts=None)
    )


def _duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} seconds" if seconds != 1 else "1 second"
    return f"{-(-seconds // 60)} minutes"


def _form_page(
    request: HttpRequest, form: SignInForm, given_next: str, problem: str = "", status: int = 200
) -> HttpResponse:
    if problem and form.data.get("username"):
        form.focus("password")
    context = {"form": form, "next": given_next if _is_local(given_next) else "", "problem": problem}
    return render(request, "accounts/sign_in.html", context, status=status)
