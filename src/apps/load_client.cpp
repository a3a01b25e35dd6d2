// SPDX-License-Identifier: Apache-2.0
#include "apps/load_client.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <utility>

#include "apps/response_reader.h"
#include "core/error.h"

namespace quatrain::apps {
namespace {

using Clock = std::chrono::steady_clock;

// The number behind `key` in a line of JSON; 0 when it is not there.
std::int64_t number_behind(std::string_view json, std::string_view key) {
  const auto at = json.find(key);
  std::int64_t value = 0;
  if (at == json.npos) return 0;
  const std::string_view rest = json.substr(at + key.size());
  std::from_chars(rest.data(), rest.data() + rest.size(), value);
  return value;
}

bool has_text(std::string_view event) {
  for (const std::string_view key :
       {R"("text":")", R"("content":")", R"("reasoning_content":")", R"("tool_calls":[)"}) {
    const auto at = event.find(key);
    if (at != event.npos && event.substr(at + key.size(), 1) != "\"") return true;
  }
  return false;
}

class Load {
 public:
  explicit Load(const LoadOptions& options) : options_(options), random_(options.seed) {
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    look_up();
    head_ = fmt::format(
        "{} {} HTTP/1.1\r\nHost: {}:{}\r\n{}{}", options.method, options.path, options.host,
        options.port, options.body ? "Content-Type: application/json\r\n" : "",
        options.api_key.empty() ? ""
                                : fmt::format("Authorization: Bearer {}\r\n", options.api_key));
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_ < 0) fail("epoll: {}", std::strerror(errno));
  }
  ~Load() {
    for (const auto& connection : connections_)
      if (connection->socket >= 0) ::close(connection->socket);
    ::close(epoll_);
  }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;

  std::vector<LoadRecord> run();

 private:
  static constexpr std::int64_t kNone = -1;
  struct Connection {
    int socket = -1;
    std::int64_t request = kNone;
    std::string out;
    std::size_t sent = 0;
    bool wants_output = false;
    ResponseReader reader;
  };

  double now() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }
  void look_up();
  bool may_start(double time) const;
  int wait_milliseconds(double time) const;
  void start(double time);
  Connection& connection();
  bool open(Connection& c);
  void send_rest(Connection& c);
  void receive(Connection& c);
  void take(LoadRecord& record, double moment, std::string_view event);
  void finish(Connection& c);
  void drop(Connection& c);
  void give_up_late(double time);

  const LoadOptions& options_;
  std::mt19937_64 random_;
  sockaddr_storage address_{};
  socklen_t address_size_ = 0;
  int epoll_ = -1;
  Clock::time_point begin_ = Clock::now();
  std::string head_;
  std::vector<LoadRecord> records_;
  std::deque<std::unique_ptr<Connection>> connections_;
  std::vector<Connection*> idle_, closed_;
  std::int64_t active_ = 0, done_ = 0;
  double next_start_ = 0, next_sweep_ = 0.5;
  std::vector<std::string> events_;  // of one piece, kept for its memory
};

void Load::look_up() {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(options_.host.c_str(), std::to_string(options_.port).c_str(), &hints, &found);
  if (error != 0) fail("{}: {}", options_.host, gai_strerror(error));
  address_size_ = found->ai_addrlen;
  std::memcpy(&address_, found->ai_addr, address_size_);
  freeaddrinfo(found);
}

bool Load::may_start(double time) const {
  return static_cast<std::int64_t>(records_.size()) < options_.requests &&
         (options_.seconds <= 0 || time < options_.seconds) &&
         (options_.concurrency <= 0 || active_ < options_.concurrency) && time >= next_start_;
}

int Load::wait_milliseconds(double time) const {
  double until = next_sweep_;
  if (options_.rate > 0 && static_cast<std::int64_t>(records_.size()) < options_.requests &&
      next_start_ > time)
    until = std::min(until, next_start_);
  return std::clamp(static_cast<int>((until - time) * 1e3), 0, 500);
}

std::vector<LoadRecord> Load::run() {
  std::array<epoll_event, 512> ready{};
  for (;;) {
    double time = now();
    while (may_start(time)) start(time = now());
    const bool more = static_cast<std::int64_t>(records_.size()) < options_.requests &&
                      (options_.seconds <= 0 || time < options_.seconds);
    if (active_ == 0 && !more) break;
    const int count = epoll_wait(epoll_, ready.data(), ready.size(), wait_milliseconds(time));
    for (int i = 0; i < count; ++i) {
      auto& c = *static_cast<Connection*>(ready[static_cast<std::size_t>(i)].data.ptr);
      if (c.socket >= 0 && (ready[static_cast<std::size_t>(i)].events & EPOLLOUT) != 0)
        send_rest(c);
      if (c.socket >= 0 && (ready[static_cast<std::size_t>(i)].events & ~EPOLLOUT) != 0) receive(c);
    }
    if (now() >= next_sweep_) give_up_late(now());
  }
  return std::move(records_);
}

void Load::start(double time) {
  if (options_.rate > 0)
    next_start_ += std::exponential_distribution<double>(options_.rate)(random_);
  const auto index = static_cast<std::int64_t>(records_.size());
  records_.emplace_back().begin = time;
  Connection& c = connection();
  const std::string body = options_.body ? options_.body(index) : "";
  c.request = index;
  c.out = head_;
  if (options_.body) c.out += fmt::format("Content-Length: {}\r\n", body.size());
  c.out += "\r\n" + body;
  c.sent = 0;
  c.reader.begin();
  ++active_;
  if (c.socket < 0 && !open(c)) {
    if (done_ == 0) fail("{}:{}: {}", options_.host, options_.port, std::strerror(errno));
    return drop(c);
  }
  send_rest(c);
}

Load::Connection& Load::connection() {
  for (std::vector<Connection*>* list : {&idle_, &closed_}) {
    if (list->empty()) continue;
    Connection* c = list->back();
    list->pop_back();
    return *c;
  }
  return *connections_.emplace_back(std::make_unique<Connection>());
}

bool Load::open(Connection& c) {
  c.socket = ::socket(address_.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c.socket < 0) return false;
  const int on = 1;
  ::setsockopt(c.socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const int result =
      ::connect(c.socket, reinterpret_cast<const sockaddr*>(&address_), address_size_);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = &c;
  c.wants_output = false;
  return (result == 0 || errno == EINPROGRESS) &&
         epoll_ctl(epoll_, EPOLL_CTL_ADD, c.socket, &event) == 0;
}

void Load::send_rest(Connection& c) {
  while (c.sent < c.out.size()) {
    const ssize_t n = ::send(c.socket, c.out.data() + c.sent, c.out.size() - c.sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != ENOTCONN) return drop(c);
    if (n < 0) break;
    c.sent += static_cast<std::size_t>(n);
  }
  const bool wants_output = c.sent < c.out.size();
  if (wants_output == c.wants_output) return;
  c.wants_output = wants_output;
  epoll_event event{};
  event.events = wants_output ? EPOLLIN | EPOLLOUT : EPOLLIN;
  event.data.ptr = &c;
  epoll_ctl(epoll_, EPOLL_CTL_MOD, c.socket, &event);
}

void Load::receive(Connection& c) {
  std::array<char, 16384> buffer;
  const ssize_t n = ::recv(c.socket, buffer.data(), buffer.size(), 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0 || c.request == kNone) return drop(c);
  LoadRecord& record = records_[static_cast<std::size_t>(c.request)];
  const double moment = now() - record.begin;
  if (record.first_byte == 0) record.first_byte = moment;
  events_.clear();
  c.reader.feed({buffer.data(), static_cast<std::size_t>(n)}, events_);
  record.status = c.reader.status();
  for (const std::string& event : events_) take(record, moment, event);
  if (c.reader.broken()) return drop(c);
  if (c.reader.done()) finish(c);
}

void Load::take(LoadRecord& record, double moment, std::string_view event) {
  if (event == "[DONE]") {
    record.complete = true;
    return;
  }
  if (has_text(event)) record.tokens.push_back(static_cast<float>(moment));
  if (event.find(R"("usage":{)") == event.npos) return;
  record.prompt_tokens = number_behind(event, R"("prompt_tokens":)");
  record.completion_tokens = number_behind(event, R"("completion_tokens":)");
}

// The response is whole.
void Load::finish(Connection& c) {
  LoadRecord& record = records_[static_cast<std::size_t>(c.request)];
  record.end = now() - record.begin;
  if (!c.reader.body().empty()) {  // no stream
    record.complete = record.status == 200;
    record.prompt_tokens = number_behind(c.reader.body(), R"("prompt_tokens":)");
    record.completion_tokens = number_behind(c.reader.body(), R"("completion_tokens":)");
  }
  const bool can_stay = c.reader.keep_alive() && c.sent == c.out.size();
  if (!can_stay) return drop(c);
  c.request = kNone;
  --active_;
  ++done_;
  idle_.push_back(&c);
}

// The connection has ended, and with it the request if it had one.
void Load::drop(Connection& c) {
  if (c.socket >= 0) ::close(std::exchange(c.socket, -1));
  if (c.request == kNone) {
    std::erase(idle_, &c);
  } else {
    LoadRecord& record = records_[static_cast<std::size_t>(c.request)];
    if (record.end == 0) record.end = now() - record.begin;
    c.request = kNone;
    --active_;
    ++done_;
  }
  closed_.push_back(&c);
}

void Load::give_up_late(double time) {
  next_sweep_ = time + 0.5;
  for (const auto& c : connections_)
    if (c->request != kNone &&
        time - records_[static_cast<std::size_t>(c->request)].begin > options_.timeout)
      drop(*c);
  if (options_.on_progress) options_.on_progress(done_);
}

}  // namespace

std::vector<LoadRecord> run_load(const LoadOptions& options) { return Load(options).run(); }

}  // namespace quatrain::apps
