"""Replies of several parts: every byte of each, however they arrive, and nothing of half of one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicomslide.backends.dicomweb.multipart import ReplyError, parts_of

KIND = 'multipart/related; type="application/octet-stream"; boundary="b/1"'


def body(parts, *, lengths=False, preamble=b"", epilogue=b""):
    written = preamble
    for data in parts:
        length = b"Content-Length: %d\r\n" % len(data) if lengths else b""
        written += b"\r\n--b/1\r\n%sContent-Type: image/jp2\r\n\r\n%s" % (length, data)
    return written + b"\r\n--b/1--" + epilogue


@given(
    parts=st.lists(
        st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"\r\n", b"\r\n--b", b"--b/1--"])),
        max_size=4,
    ),
    lengths=st.booleans(),
    step=st.integers(1, 60),
    preamble=st.sampled_from([b"", b"for old mail readers"]),
    epilogue=st.sampled_from([b"", b"\r\n", b"\r\nmore"]),
)
def test_parts_are_found_wherever_the_reply_is_cut(parts, lengths, step, preamble, epilogue):
    sent = body(parts, lengths=lengths, preamble=preamble, epilogue=epilogue)
    chunks = [sent[i : i + step] for i in range(0, len(sent), step)]
    found = list(parts_of(KIND, chunks))
    assert [part.data for part in found] == parts
    assert {part.media_type for part in found} <= {"image/jp2"}


@given(st.data())
def test_a_reply_cut_short_is_an_error(data):
    sent = body([b"abc", b"defg"])
    end = data.draw(st.integers(0, len(sent) - 1))
    with pytest.raises(ReplyError, match="the reply ends before"):
        list(parts_of(KIND, [sent[:end]]))


def test_a_part_whose_length_is_given_may_hold_the_delimiter():
    data = b"pixels\r\n--b/1--\r\n--b/1\r\nmore pixels"
    (part,) = parts_of(KIND, [body([data], lengths=True)])
    assert part.data == data


def test_a_part_that_is_not_as_long_as_it_says_is_an_error():
    sent = body([b"abcdef"], lengths=True).replace(b"abcdef", b"abc")
    with pytest.raises(ReplyError, match="part 1"):
        list(parts_of(KIND, [sent]))


def test_parts_arrive_before_the_reply_ends():
    sent = body([b"abc", b"defg"])

    def chunks():
        yield sent[: sent.index(b"defg") + 4]
        raise AssertionError("the first part is here already")

    assert next(parts_of(KIND, chunks())).data == b"abc"


def test_a_reply_that_is_not_multipart_is_its_only_part():
    (part,) = parts_of("image/jp2; transfer-syntax=1.2.840.10008.1.2.4.90", [b"ab", b"cd"])
    assert (part.data, part.media_type) == (b"abcd", "image/jp2")
    assert part.transfer_syntax_uid == "1.2.840.10008.1.2.4.90"


def test_a_part_says_which_frame_it_is():
    head = "Content-Location: http://host/studies/1/series/2/instances/3/frames/17"
    sent = f"--b/1\r\n{head}\r\n\r\nabc\r\n--b/1\r\n\r\ndef\r\n--b/1--".encode()
    first, second = parts_of(KIND, [sent])
    assert (first.frame_number, second.frame_number) == (17, None)
    assert second.data == b"def"
    assert second.media_type == ""


def test_headers_without_end_are_an_error():
    with pytest.raises(ReplyError, match="no headers"):
        list(parts_of(KIND, [b"--b/1\r\n", *([b"x" * 1000] * 100)]))
