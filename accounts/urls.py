from django.urls import path

from accounts import views

app_name = "accounts"
urlpatterns = [
    path("", views.sign_in, name="sign-in"),
    path("sign-out", views.sign_out, name="sign-out"),
    # The admin site's own door leads to ours; cloudstore/urls.py includes these before the admin site.
    path("admin/login/", views.staff_sign_in),
    path("admin/logout/", views.sign_out),
]
