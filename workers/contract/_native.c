/* The innermost steps of the data plane in C: sockets without the layers that CPython's have for uses that a
 * worker has not, cells of shared memory, and heads taken apart in one pass.
 *
 * Everything here has a twin in Python, which is what runs where this was not compiled, and which says what is
 * right: `workers.io.sockets`, `workers.contract.native` and `workers.core.heads`. The tests give both the same
 * and compare.
 *
 * No call releases the GIL: none of them waits, since all sockets are non-blocking. The loop releases it with
 * each turn.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* --- arguments ------------------------------------------------------------------------------------------- */

static int
has_count(const char *name, Py_ssize_t count, Py_ssize_t least, Py_ssize_t most)
{
    if (count >= least && count <= most)
        return 1;
    PyErr_Format(PyExc_TypeError, "%s takes %zd to %zd arguments, not %zd", name, least, most, count);
    return 0;
}

static int
as_int(PyObject *object, int *value)
{
    long found = PyLong_AsLong(object);
    if (found == -1 && PyErr_Occurred())
        return 0;
    if (found != (int)found) {
        PyErr_SetString(PyExc_OverflowError, "the number is too large");
        return 0;
    }
    *value = (int)found;
    return 1;
}

/* --- sockets --------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    int fd; /* -1 once closed or detached */
    int family;
} Socket;

static PyTypeObject Socket_Type;

static PyObject *
new_socket(int fd, int family)
{
    Socket *self = PyObject_New(Socket, &Socket_Type);
    if (self == NULL) {
        close(fd);
        return NULL;
    }
    self->fd = fd;
    self->family = family;
    return (PyObject *)self;
}

/* As CPython's: what was forgotten is closed all the same, but whoever forgot it shall know. */
static void
socket_finalize(Socket *self)
{
    PyObject *kind, *value, *trace;

    if (self->fd < 0)
        return;
    PyErr_Fetch(&kind, &value, &trace);
    if (PyErr_ResourceWarning((PyObject *)self, 1, "unclosed %R", self) < 0)
        PyErr_WriteUnraisable((PyObject *)self);
    PyErr_Restore(kind, value, trace);
    close(self->fd);
    self->fd = -1;
}

static void
socket_dealloc(Socket *self)
{
    if (self->fd >= 0 && PyObject_CallFinalizerFromDealloc((PyObject *)self) < 0)
        return; /* somebody keeps it */
    PyObject_Free(self);
}

static PyObject *
socket_repr(Socket *self)
{
    return PyUnicode_FromFormat("<workers.contract._native.Socket fd=%d family=%d>", self->fd, self->family);
}

static PyObject *
failed(void)
{
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *
socket_recv_into(Socket *self, PyObject *target)
{
    Py_buffer buffer;
    ssize_t size;

    if (PyObject_GetBuffer(target, &buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    do
        size = buffer.len == 0 ? 0 : recv(self->fd, buffer.buf, (size_t)buffer.len, 0);
    while (size < 0 && errno == EINTR);
    PyBuffer_Release(&buffer); /* (which leaves errno alone) */
    return size < 0 ? failed() : PyLong_FromSsize_t(size);
}

static PyObject *
socket_recv(Socket *self, PyObject *const *args, Py_ssize_t count)
{
    int most, flags = 0;
    ssize_t size;
    PyObject *data;

    if (!has_count("recv", count, 1, 2) || !as_int(args[0], &most) || (count > 1 && !as_int(args[1], &flags)))
        return NULL;
    if (most < 0) {
        PyErr_SetString(PyExc_ValueError, "negative buffer size in recv");
        return NULL;
    }
    data = PyBytes_FromStringAndSize(NULL, most);
    if (data == NULL)
        return NULL;
    do
        size = most == 0 ? 0 : recv(self->fd, PyBytes_AS_STRING(data), (size_t)most, flags);
    while (size < 0 && errno == EINTR);
    if (size < 0) {
        failed();
        Py_DECREF(data);
        return NULL;
    }
    _PyBytes_Resize(&data, size);
    return data;
}

static PyObject *
socket_send(Socket *self, PyObject *data)
{
    Py_buffer buffer;
    ssize_t size;

    if (PyBytes_CheckExact(data)) {
        do
            size = send(self->fd, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data), MSG_NOSIGNAL);
        while (size < 0 && errno == EINTR);
    }
    else {
        if (PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE) < 0)
            return NULL;
        do
            size = send(self->fd, buffer.buf, (size_t)buffer.len, MSG_NOSIGNAL);
        while (size < 0 && errno == EINTR);
        PyBuffer_Release(&buffer);
    }
    return size < 0 ? failed() : PyLong_FromSsize_t(size);
}

static PyObject *
socket_connect_ex(Socket *self, PyObject *address)
{
    int result;

    if (!PyBytes_Check(address)) {
        PyErr_SetString(PyExc_TypeError, "connect_ex takes a packed address");
        return NULL;
    }
    result = connect(self->fd, (const struct sockaddr *)PyBytes_AS_STRING(address),
                     (socklen_t)PyBytes_GET_SIZE(address));
    /* Interrupted, it goes on by itself (connect(2)); trying again would say EALREADY. */
    return PyLong_FromLong(result == 0 ? 0 : errno == EINTR ? EINPROGRESS : errno);
}

static PyObject *
socket_shutdown(Socket *self, PyObject *arg)
{
    int how;

    if (!as_int(arg, &how))
        return NULL;
    if (shutdown(self->fd, how) < 0)
        return failed();
    Py_RETURN_NONE;
}

static PyObject *
socket_setsockopt(Socket *self, PyObject *const *args, Py_ssize_t count)
{
    int level, option, flag, result;
    Py_buffer buffer;

    if (!has_count("setsockopt", count, 3, 3) || !as_int(args[0], &level) || !as_int(args[1], &option))
        return NULL;
    if (PyLong_Check(args[2])) {
        if (!as_int(args[2], &flag))
            return NULL;
        result = setsockopt(self->fd, level, option, &flag, sizeof flag);
    }
    else {
        if (PyObject_GetBuffer(args[2], &buffer, PyBUF_SIMPLE) < 0)
            return NULL;
        result = setsockopt(self->fd, level, option, buffer.buf, (socklen_t)buffer.len);
        PyBuffer_Release(&buffer);
    }
    if (result < 0)
        return failed();
    Py_RETURN_NONE;
}

static PyObject *
socket_getsockopt(Socket *self, PyObject *const *args, Py_ssize_t count)
{
    int level, option, most = 0, flag = 0;
    socklen_t length = sizeof flag;
    char value[1024];

    if (!has_count("getsockopt", count, 2, 3) || !as_int(args[0], &level) || !as_int(args[1], &option) ||
        (count > 2 && !as_int(args[2], &most)))
        return NULL;
    if (most == 0) {
        if (getsockopt(self->fd, level, option, &flag, &length) < 0)
            return failed();
        return PyLong_FromLong(flag);
    }
    if (most < 0 || most > (int)sizeof value) {
        PyErr_SetString(PyExc_OSError, "getsockopt buflen out of range");
        return NULL;
    }
    length = (socklen_t)most;
    if (getsockopt(self->fd, level, option, value, &length) < 0)
        return failed();
    return PyBytes_FromStringAndSize(value, (Py_ssize_t)length);
}

static PyObject *
socket_getpeername(Socket *self, PyObject *Py_UNUSED(none))
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;

    if (getpeername(self->fd, (struct sockaddr *)&peer, &length) < 0)
        return failed();
    return PyBytes_FromStringAndSize((const char *)&peer, (Py_ssize_t)Py_MIN(length, sizeof peer));
}

static PyObject *
socket_fileno(Socket *self, PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(self->fd);
}

static PyObject *
socket_detach(Socket *self, PyObject *Py_UNUSED(none))
{
    int fd = self->fd;

    self->fd = -1;
    return PyLong_FromLong(fd);
}

static PyObject *
socket_close(Socket *self, PyObject *Py_UNUSED(none))
{
    int fd = self->fd;

    self->fd = -1;
    /* ECONNRESET is what the peer did, and EINTR does not mean that it is open still (close(2)). */
    if (fd >= 0 && close(fd) < 0 && errno != ECONNRESET && errno != EINTR)
        return failed();
    Py_RETURN_NONE;
}

static PyObject *
socket_get_family(Socket *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(self->family);
}

static PyObject *
socket_get_type(Socket *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    return PyLong_FromLong(SOCK_STREAM);
}

static PyObject *
socket_get_proto(Socket *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    return PyLong_FromLong(0);
}

#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef socket_methods[] = {
    {"recv_into", (PyCFunction)socket_recv_into, METH_O, NULL},
    {"recv", FAST(socket_recv), METH_FASTCALL, NULL},
    {"send", (PyCFunction)socket_send, METH_O, NULL},
    {"connect_ex", (PyCFunction)socket_connect_ex, METH_O, NULL},
    {"shutdown", (PyCFunction)socket_shutdown, METH_O, NULL},
    {"setsockopt", FAST(socket_setsockopt), METH_FASTCALL, NULL},
    {"getsockopt", FAST(socket_getsockopt), METH_FASTCALL, NULL},
    {"getpeername", (PyCFunction)socket_getpeername, METH_NOARGS, NULL},
    {"fileno", (PyCFunction)socket_fileno, METH_NOARGS, NULL},
    {"detach", (PyCFunction)socket_detach, METH_NOARGS, NULL},
    {"close", (PyCFunction)socket_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef socket_attributes[] = {
    {"family", (getter)socket_get_family, NULL, NULL, NULL},
    {"type", (getter)socket_get_type, NULL, NULL, NULL},
    {"proto", (getter)socket_get_proto, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject Socket_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "workers.contract._native.Socket",
    .tp_basicsize = sizeof(Socket),
    .tp_dealloc = (destructor)socket_dealloc,
    .tp_finalize = (destructor)socket_finalize,
    .tp_repr = (reprfunc)socket_repr,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A non-blocking stream socket; see workers.io.sockets.",
    .tp_methods = socket_methods,
    .tp_getset = socket_attributes,
};

static PyObject *
adopted(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    int fd, family;

    if (!has_count("adopted", count, 2, 2) || !as_int(args[0], &fd) || !as_int(args[1], &family))
        return NULL;
    return new_socket(fd, family);
}

static PyObject *
opened(PyObject *Py_UNUSED(module), PyObject *arg)
{
    int family, fd, on = 1;

    if (!as_int(arg, &family))
        return NULL;
    fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return failed();
    if (family != AF_UNIX && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0) {
        failed();
        close(fd);
        return NULL;
    }
    return new_socket(fd, family);
}

static PyObject *
peer_address(const struct sockaddr_storage *peer)
{
    char text[INET6_ADDRSTRLEN];
    const void *address;

    if (peer->ss_family == AF_INET)
        address = &((const struct sockaddr_in *)peer)->sin_addr;
    else if (peer->ss_family == AF_INET6)
        address = &((const struct sockaddr_in6 *)peer)->sin6_addr;
    else
        return PyUnicode_FromStringAndSize("", 0);
    if (inet_ntop(peer->ss_family, address, text, sizeof text) == NULL)
        return failed();
    return PyUnicode_FromString(text);
}

static PyObject *
accepted(PyObject *Py_UNUSED(module), PyObject *arg)
{
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;
    PyObject *sock, *address, *pair;
    int listening, fd;

    if (!as_int(arg, &listening))
        return NULL;
    fd = accept4(listening, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
            Py_RETURN_NONE;
        return failed();
    }
    if (length < sizeof(sa_family_t)) /* a Unix socket's peer has no name */
        peer.ss_family = AF_UNIX;
    sock = new_socket(fd, peer.ss_family);
    if (sock == NULL)
        return NULL;
    address = peer_address(&peer);
    pair = address == NULL ? NULL : PyTuple_Pack(2, sock, address);
    Py_XDECREF(address);
    if (pair == NULL)
        close(((Socket *)sock)->fd), ((Socket *)sock)->fd = -1;
    Py_DECREF(sock);
    return pair;
}

/* --- cells ----------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *view; /* a memoryview of format "q", for all that is not one cell */
    Py_buffer buffer;
} Cells;

static PyObject *
cells_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"", NULL};
    PyObject *view;
    Cells *self;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!:Cells", names, &PyMemoryView_Type, &view))
        return NULL;
    self = (Cells *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    if (PyObject_GetBuffer(view, &self->buffer, PyBUF_CONTIG | PyBUF_FORMAT) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->view = Py_NewRef(view);
    if (self->buffer.ndim != 1 || self->buffer.itemsize != 8 || strcmp(self->buffer.format, "q") != 0) {
        PyErr_SetString(PyExc_TypeError, "cells are one row of format q");
        Py_DECREF(self);
        return NULL;
    }
    if (self->buffer.len > 0 && (uintptr_t)self->buffer.buf % 8 != 0) { /* they would tear */
        PyErr_SetString(PyExc_ValueError, "cells are aligned to 8 bytes");
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void
cells_dealloc(Cells *self)
{
    if (self->buffer.obj != NULL)
        PyBuffer_Release(&self->buffer);
    Py_XDECREF(self->view);
    Py_TYPE(self)->tp_free(self);
}

static Py_ssize_t
cells_length(Cells *self)
{
    return self->buffer.len / 8;
}

static int64_t *
cell_at(Cells *self, PyObject *key)
{
    Py_ssize_t length = self->buffer.len / 8, index = PyLong_AsSsize_t(key);

    if (index < 0) {
        if (index == -1 && PyErr_Occurred()) {
            if (PyErr_ExceptionMatches(PyExc_OverflowError))
                PyErr_SetString(PyExc_IndexError, "cannot fit 'int' into an index-sized integer");
            return NULL;
        }
        index += length;
    }
    if (index < 0 || index >= length) {
        PyErr_SetString(PyExc_IndexError, "index out of bounds on dimension 1");
        return NULL;
    }
    return (int64_t *)self->buffer.buf + index;
}

static PyObject *
cells_get(Cells *self, PyObject *key)
{
    int64_t *cell;

    if (!PyLong_CheckExact(key))
        return PyObject_GetItem(self->view, key);
    cell = cell_at(self, key);
    return cell == NULL ? NULL : PyLong_FromLongLong(*cell);
}

static int
cells_set(Cells *self, PyObject *key, PyObject *value)
{
    int64_t *cell;
    long long number;

    if (value == NULL) {
        PyErr_SetString(PyExc_TypeError, "cannot delete memory");
        return -1;
    }
    if (!PyLong_CheckExact(key) || !PyLong_CheckExact(value))
        return PyObject_SetItem(self->view, key, value);
    cell = cell_at(self, key);
    if (cell == NULL)
        return -1;
    number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) {
        PyErr_SetString(PyExc_ValueError, "memoryview: invalid value for format 'q'");
        return -1;
    }
    *cell = number;
    return 0;
}

static PyObject *
cells_iterate(Cells *self)
{
    return PyObject_GetIter(self->view);
}

static PyMappingMethods cells_mapping = {
    .mp_length = (lenfunc)cells_length,
    .mp_subscript = (binaryfunc)cells_get,
    .mp_ass_subscript = (objobjargproc)cells_set,
};

static PyTypeObject Cells_Type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "workers.contract._native.Cells",
    .tp_basicsize = sizeof(Cells),
    .tp_new = cells_new,
    .tp_dealloc = (destructor)cells_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A memoryview of format q, with a short way to a single cell.",
    .tp_iter = (getiterfunc)cells_iterate,
    .tp_as_mapping = &cells_mapping,
};

static int
are_cells(PyObject *object)
{
    if (Py_IS_TYPE(object, &Cells_Type))
        return 1;
    PyErr_SetString(PyExc_TypeError, "these are no Cells");
    return 0;
}

static PyObject *
add(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    long long amount;

    if (!has_count("add", count, 2, PY_SSIZE_T_MAX) || !are_cells(args[0]))
        return NULL;
    amount = PyLong_AsLongLong(args[1]);
    if (amount == -1 && PyErr_Occurred())
        return NULL;
    for (Py_ssize_t i = 2; i < count; i++) {
        int64_t *cell = cell_at((Cells *)args[0], args[i]);
        if (cell == NULL)
            return NULL;
        *cell = (int64_t)((uint64_t)*cell + (uint64_t)amount); /* wraps, as no counter ever will */
    }
    Py_RETURN_NONE;
}

static PyObject *
observe(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    Py_ssize_t low = 0, high, buckets;
    long long value;
    int64_t *sum, *bucket;

    if (!has_count("observe", count, 5, 5) || !are_cells(args[0]))
        return NULL;
    if (!PyTuple_Check(args[3])) {
        PyErr_SetString(PyExc_TypeError, "bounds are a tuple");
        return NULL;
    }
    sum = cell_at((Cells *)args[0], args[1]);
    if (sum == NULL)
        return NULL;
    buckets = PyLong_AsSsize_t(args[2]);
    if (buckets == -1 && PyErr_Occurred())
        return NULL;
    value = PyLong_AsLongLong(args[4]);
    if (value == -1 && PyErr_Occurred())
        return NULL;
    for (high = PyTuple_GET_SIZE(args[3]); low < high;) { /* bisect_left */
        Py_ssize_t middle = (low + high) / 2;
        long long bound = PyLong_AsLongLong(PyTuple_GET_ITEM(args[3], middle));
        if (bound == -1 && PyErr_Occurred())
            return NULL;
        if (bound < value)
            low = middle + 1;
        else
            high = middle;
    }
    if (buckets < 0 || low >= ((Cells *)args[0])->buffer.len / 8 - buckets) {
        PyErr_SetString(PyExc_IndexError, "index out of bounds on dimension 1");
        return NULL;
    }
    bucket = (int64_t *)((Cells *)args[0])->buffer.buf + buckets + low;
    *sum = (int64_t)((uint64_t)*sum + (uint64_t)value);
    *bucket = (int64_t)((uint64_t)*bucket + 1);
    Py_RETURN_NONE;
}

/* --- heads ----------------------------------------------------------------------------------------------- */

enum { TOKEN = 1, TARGET = 2, TEXT = 4 };

static unsigned char kinds[256];
static unsigned char lower[256];

/* A field that a proxy must know; "~" is a hyphen that CGI-like servers take an underscore for. */
typedef struct {
    const char *pattern;
    Py_ssize_t length;
    PyObject *name; /* with hyphens */
} Known;

static Known known_request[] = {
    {"host", 0, NULL}, {"http2-settings", 0, NULL}, {"connection", 0, NULL}, {"content~length", 0, NULL},
    {"te", 0, NULL}, {"transfer~encoding", 0, NULL}, {"upgrade", 0, NULL}, {"expect", 0, NULL},
    {"keep-alive", 0, NULL}, {"proxy-connection", 0, NULL}, {"x~forwarded~for", 0, NULL},
    {"x~forwarded~host", 0, NULL}, {"x~forwarded~proto", 0, NULL}, {"x~forwarded~port", 0, NULL},
    {"x~request~id", 0, NULL}, {"forwarded", 0, NULL}, {NULL, 0, NULL},
};

static Known known_response[] = {
    {"connection", 0, NULL}, {"content-length", 0, NULL}, {"transfer-encoding", 0, NULL}, {"te", 0, NULL},
    {"upgrade", 0, NULL}, {"keep-alive", 0, NULL}, {"proxy-connection", 0, NULL}, {NULL, 0, NULL},
};

static int
prepare_known(Known *known)
{
    char name[32];

    for (; known->pattern != NULL; known++) {
        known->length = (Py_ssize_t)strlen(known->pattern);
        for (Py_ssize_t i = 0; i <= known->length; i++)
            name[i] = known->pattern[i] == '~' ? '-' : known->pattern[i];
        known->name = PyBytes_FromStringAndSize(name, known->length);
        if (known->name == NULL)
            return -1;
    }
    return 0;
}

static void
prepare_kinds(void)
{
    for (int byte = 0; byte < 256; byte++) {
        int letter = (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
        int number = byte >= '0' && byte <= '9';
        if (letter || number || (byte && strchr("!#$%&'*+-.^_`|~", byte) != NULL))
            kinds[byte] |= TOKEN; /* RFC 9110 section 5.6.2 */
        if (byte >= 0x21 && byte <= 0x7e && byte != '#')
            kinds[byte] |= TARGET;
        if (byte == '\t' || (byte >= 0x20 && byte != 0x7f))
            kinds[byte] |= TEXT; /* RFC 9110 section 5.5: VCHAR, obs-text, SP and HTAB */
        lower[byte] = (unsigned char)(byte >= 'A' && byte <= 'Z' ? byte + 32 : byte);
    }
}

static const unsigned char *
past(const unsigned char *at, const unsigned char *end, int kind)
{
    while (at < end && kinds[*at] & kind)
        at++;
    return at;
}

#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte))

/* `past` of TEXT, eight bytes at a time as long as none of them is a control character or DEL. */
static const unsigned char *
past_text(const unsigned char *at, const unsigned char *end)
{
    for (;;) {
        while (end - at >= 8) {
            uint64_t word, delete;
            memcpy(&word, at, 8);
            delete = word ^ EACH(0x7f);
            if ((((word - EACH(0x20)) & ~word) | ((delete - EACH(0x01)) & ~delete)) & EACH(0x80))
                break;
            at += 8;
        }
        if (at >= end || !(kinds[*at] & TEXT))
            return at;
        at++;
    }
}

static PyObject *
lowered(const unsigned char *from, Py_ssize_t size)
{
    PyObject *data = PyBytes_FromStringAndSize(NULL, size);
    if (data != NULL) {
        char *to = PyBytes_AS_STRING(data);
        for (Py_ssize_t i = 0; i < size; i++)
            to[i] = (char)lower[from[i]];
    }
    return data;
}

/* The name of a field if it is a known one (a new reference), or NULL, maybe with an exception. */
static PyObject *
known_name(const Known *known, const unsigned char *name, Py_ssize_t length)
{
    for (; known->pattern != NULL; known++) {
        if (known->length != length || known->pattern[0] != (char)lower[name[0]])
            continue;
        int other = 0;
        Py_ssize_t i = 1;
        for (; i < length; i++) {
            char byte = (char)lower[name[i]], want = known->pattern[i];
            if (want == '~' && byte == '_')
                other = 1;
            else if (byte != (want == '~' ? '-' : want))
                break;
        }
        if (i == length)
            return other ? lowered(name, length) : Py_NewRef(known->name);
    }
    return NULL;
}

static int
note_known(PyObject *found, const Known *known, const unsigned char *name, const unsigned char *colon,
           const unsigned char *end)
{
    PyObject *pair, *value, *key = known_name(known, name, colon - name);
    int result;

    if (key == NULL)
        return PyErr_Occurred() ? -1 : 0;
    do
        colon++;
    while (colon < end && (*colon == ' ' || *colon == '\t'));
    value = lowered(colon, end - colon);
    pair = value == NULL ? NULL : PyTuple_Pack(2, key, value);
    result = pair == NULL ? -1 : PyList_Append(found, pair);
    Py_XDECREF(pair);
    Py_XDECREF(value);
    Py_DECREF(key);
    return result;
}

/* The lines of fields from `at` to the empty line, whose beginning is returned; NULL where there is no such
 * thing, maybe with an exception. Known fields go to `found`. */
static const unsigned char *
past_fields(const unsigned char *at, const unsigned char *end, const Known *known, PyObject *found)
{
    for (;;) {
        const unsigned char *name, *colon;

        if (end - at < 4 || at[0] != '\r' || at[1] != '\n')
            return NULL;
        name = at + 2;
        if (name[0] == '\r')
            return name[1] == '\n' ? at : NULL;
        colon = past(name, end, TOKEN);
        if (colon == name || colon >= end || *colon != ':')
            return NULL;
        at = past_text(colon + 1, end);
        /* The initials of all known names. */
        switch (lower[*name]) {
        case 'c': case 'e': case 'f': case 'h': case 'k': case 'p': case 't': case 'u': case 'x':
            if (note_known(found, known, name, colon, at) < 0)
                return NULL;
        }
    }
}

/* What `parts` makes of the range of a buffer that the arguments name. The buffer is held meanwhile: making
 * the parts may start the garbage collector, and finalizers that resize a bytearray. */
static PyObject *
in_range(PyObject *const *args, Py_ssize_t count,
         PyObject *(*parts)(const unsigned char *start, const unsigned char *end))
{
    Py_buffer buffer;
    Py_ssize_t first, last;
    PyObject *found;

    if (!has_count("a head", count, 3, 3))
        return NULL;
    first = PyLong_AsSsize_t(args[1]);
    last = PyLong_AsSsize_t(args[2]);
    if ((first == -1 || last == -1) && PyErr_Occurred())
        return NULL;
    if (PyObject_GetBuffer(args[0], &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    first = Py_MIN(Py_MAX(first, 0), buffer.len);
    last = Py_MIN(Py_MAX(last, first), buffer.len);
    found = parts((const unsigned char *)buffer.buf + first, (const unsigned char *)buffer.buf + last);
    PyBuffer_Release(&buffer);
    return found;
}

static PyObject *
bytes_between(const unsigned char *start, const unsigned char *end)
{
    return PyBytes_FromStringAndSize((const char *)start, end - start);
}

/* A tuple of what is taken over, or NULL where one of it is. */
static PyObject *
taken(Py_ssize_t count, PyObject **items)
{
    PyObject *tuple = PyTuple_New(count);

    for (Py_ssize_t i = 0; i < count; i++) {
        if (items[i] == NULL || tuple == NULL) {
            for (; i < count; i++)
                Py_XDECREF(items[i]);
            Py_XDECREF(tuple);
            return NULL;
        }
        PyTuple_SET_ITEM(tuple, i, items[i]);
    }
    return tuple;
}

/* What is said where `past_fields` found no end: None, or its exception. Takes `found` over. */
static PyObject *
no_head(PyObject *found)
{
    Py_DECREF(found);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
parts_of_request(const unsigned char *start, const unsigned char *end)
{
    const unsigned char *method, *target, *minor, *fields;
    PyObject *found;

    method = past(start, end, TOKEN);
    if (method == start || method >= end || *method != ' ')
        Py_RETURN_NONE;
    target = past(method + 1, end, TARGET);
    if (target == method + 1 || end - target < 9 || memcmp(target, " HTTP/1.", 8) != 0)
        Py_RETURN_NONE;
    minor = target + 8;
    if (*minor != '0' && *minor != '1')
        Py_RETURN_NONE;
    found = PyList_New(0);
    if (found == NULL)
        return NULL;
    fields = past_fields(minor + 1, end, known_request, found);
    if (fields == NULL)
        return no_head(found);
    return taken(6, (PyObject *[]){
        bytes_between(start, method), bytes_between(method + 1, target), PyLong_FromLong(*minor - '0'),
        bytes_between(minor + 1, fields), PyLong_FromSsize_t(fields + 4 - start), found,
    });
}

static PyObject *
parts_of_response(const unsigned char *start, const unsigned char *end)
{
    const unsigned char *reason, *line, *fields;
    PyObject *found;

    /* "HTTP/1.1 200" */
    if (end - start < 12 || memcmp(start, "HTTP/1.", 7) != 0 || (start[7] != '0' && start[7] != '1') ||
        start[8] != ' ' || start[9] < '1' || start[9] > '5' || !Py_ISDIGIT(start[10]) || !Py_ISDIGIT(start[11]))
        Py_RETURN_NONE;
    reason = start + 12;
    line = reason < end && *reason == ' ' ? past_text(reason + 1, end) : reason;
    found = PyList_New(0);
    if (found == NULL)
        return NULL;
    fields = past_fields(line, end, known_response, found);
    if (fields == NULL)
        return no_head(found);
    return taken(6, (PyObject *[]){
        PyLong_FromLong(start[7] - '0'),
        PyLong_FromLong(100 * (start[9] - '0') + 10 * (start[10] - '0') + (start[11] - '0')),
        line == reason ? Py_NewRef(Py_None) : bytes_between(reason + 1, line), bytes_between(line, fields),
        PyLong_FromSsize_t(fields + 4 - start), found,
    });
}

static PyObject *
request_parts(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return in_range(args, count, parts_of_request);
}

static PyObject *
response_parts(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return in_range(args, count, parts_of_response);
}

/* The next CRLF, or NULL. */
static const unsigned char *
line_end(const unsigned char *at, const unsigned char *end)
{
    while ((at = memchr(at, '\r', (size_t)(end - at))) != NULL) {
        if (end - at >= 2 && at[1] == '\n')
            return at;
        at++;
    }
    return NULL;
}

static PyObject *
field_values(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    const unsigned char *at, *end, *name;
    Py_ssize_t length;
    PyObject *values;

    if (!has_count("field_values", count, 2, 2))
        return NULL;
    if (!PyBytes_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "field_values takes bytes");
        return NULL;
    }
    at = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    end = at + PyBytes_GET_SIZE(args[0]);
    name = (const unsigned char *)PyBytes_AS_STRING(args[1]);
    length = PyBytes_GET_SIZE(args[1]);
    values = PyList_New(0);
    while (values != NULL && (at = line_end(at, end)) != NULL) {
        const unsigned char *line = at += 2, *next = line_end(at, end), *colon;
        Py_ssize_t same = 0;
        PyObject *value;

        if (next == NULL)
            next = end;
        colon = memchr(line, ':', (size_t)(next - line));
        if (colon == NULL)
            colon = next;
        if (colon - line != length)
            continue;
        while (same < length && lower[line[same]] == name[same])
            same++;
        if (same < length)
            continue;
        if (colon < next)
            colon++;
        while (colon < next && (*colon == ' ' || *colon == '\t'))
            colon++;
        while (next > colon && (next[-1] == ' ' || next[-1] == '\t'))
            next--;
        value = bytes_between(colon, next);
        if (value == NULL || PyList_Append(values, value) < 0)
            Py_CLEAR(values);
        Py_XDECREF(value);
    }
    return values;
}

/* --- the module ------------------------------------------------------------------------------------------ */

static PyMethodDef functions[] = {
    {"adopted", FAST(adopted), METH_FASTCALL, NULL},
    {"opened", opened, METH_O, NULL},
    {"accepted", accepted, METH_O, NULL},
    {"add", FAST(add), METH_FASTCALL, NULL},
    {"observe", FAST(observe), METH_FASTCALL, NULL},
    {"request_parts", FAST(request_parts), METH_FASTCALL, NULL},
    {"response_parts", FAST(response_parts), METH_FASTCALL, NULL},
    {"field_values", FAST(field_values), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "workers.contract._native",
    .m_doc = "The innermost steps of the data plane in C; each has a twin in Python.",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    PyObject *module;

    prepare_kinds();
    if (prepare_known(known_request) < 0 || prepare_known(known_response) < 0)
        return NULL;
    if (PyType_Ready(&Socket_Type) < 0 || PyType_Ready(&Cells_Type) < 0)
        return NULL;
    module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    if (PyModule_AddObjectRef(module, "Socket", (PyObject *)&Socket_Type) < 0 ||
        PyModule_AddObjectRef(module, "Cells", (PyObject *)&Cells_Type) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
