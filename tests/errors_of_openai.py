"""What an error of the server looks like: OpenAI's shape, one line."""


def is_error(answer, status=None):
    said = answer.json()["error"]
    assert set(said) == {"message", "type", "param", "code"}
    assert said["message"]
    assert "\n" not in said["message"]
    assert status is None or answer.status_code == status, answer.text
    return said
