#include "cluster/nats_poller.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <utility>

#include "core/check.h"

namespace millrace {

namespace {

thread_local bool later = false;  // what libnats wants to have written now, flush() will write

}  // namespace

NatsPoller::Later::Later() {
  later = true;
}

NatsPoller::Later::~Later() {
  later = false;
}

NatsPoller::NatsPoller(std::function<void()> came)
    : came_(std::move(came)), woken_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  MILLRACE_CHECK(woken_ >= 0, "no more files can be opened");
  thread_ = std::thread([this] { run(); });
}

NatsPoller::~NatsPoller() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake();
  thread_.join();
  close(woken_);
}

natsStatus NatsPoller::use_for(natsOptions* options) {
  return natsOptions_SetEventLoop(options, this, &attach, &on_read, &on_write, &detach);
}

void NatsPoller::wake() {
  const std::uint64_t one = 1;
  (void)!write(woken_, &one, sizeof one);  // full: it is awake
}

void NatsPoller::flush() {
  write_some();
  const std::lock_guard lock(mutex_);
  if (writes_) wake();  // the socket took a part of it
}

void NatsPoller::write_some() {
  const std::lock_guard writing(writing_);
  natsConnection* connection = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (!writes_) return;
    connection = connection_;
  }
  natsConnection_ProcessWriteEvent(connection);
}

// libnats calls these with the connection locked, from whichever thread has something to do: they must not call it.

natsStatus NatsPoller::attach(void** self, void* poller, natsConnection* connection, natsSock socket) {
  auto* const p = static_cast<NatsPoller*>(poller);
  *self = p;
  {
    const std::lock_guard lock(p->mutex_);
    p->connection_ = connection;
    p->socket_ = socket;
    p->reads_ = true;
    p->writes_ = false;
  }
  p->wake();
  return NATS_OK;
}

natsStatus NatsPoller::on_read(void* self, bool add) {
  auto* const p = static_cast<NatsPoller*>(self);
  {
    const std::lock_guard lock(p->mutex_);
    p->reads_ = add;
    if (!add) p->socket_ = -1;  // it is closed next
  }
  p->wake();
  return NATS_OK;
}

natsStatus NatsPoller::on_write(void* self, bool add) {
  auto* const p = static_cast<NatsPoller*>(self);
  {
    const std::lock_guard lock(p->mutex_);
    p->writes_ = add;
  }
  if (add && !later) p->wake();
  return NATS_OK;
}

natsStatus NatsPoller::detach(void* self) {
  auto* const p = static_cast<NatsPoller*>(self);
  const std::lock_guard lock(p->mutex_);
  p->socket_ = -1;
  p->writes_ = false;
  p->connection_ = nullptr;
  return NATS_OK;
}

void NatsPoller::run() {
  for (;;) {
    std::array<pollfd, 2> files = {};
    natsConnection* connection = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (stop_) return;
      const int events = (reads_ ? POLLIN : 0) | (writes_ ? POLLOUT : 0);
      files = {{{woken_, POLLIN, 0}, {events == 0 ? -1 : socket_, static_cast<short>(events), 0}}};
      connection = connection_;
    }
    (void)poll(files.data(), files.size(), -1);
    if (files[0].revents != 0) {
      std::uint64_t count = 0;
      (void)!read(woken_, &count, sizeof count);
      const std::lock_guard lock(mutex_);
      if (stop_) return;
    }
    // Of a socket that was closed meanwhile libnats knows that it is.
    if ((files[1].revents & (POLLIN | POLLERR | POLLHUP)) != 0) {
      natsConnection_ProcessReadEvent(connection);
      came_();
    }
    if ((files[1].revents & POLLOUT) != 0) write_some();
  }
}

}  // namespace millrace
